"""Column and slot numbers of the fixed-shape scene tables; the one place where they are written down.

Primitives are boxes turned about the vertical, upright cylinders and spheres; every scene has the same number of each
and absent ones lie far below the floor. The room itself is one more box, seen from inside.
"""

from __future__ import annotations

BOXES, CYLINDERS, SPHERES = 16, 4, 4
PRIMITIVES = BOXES + CYLINDERS + SPHERES
SHELL = PRIMITIVES  # row of the room box in the primitive table
PRIMITIVE_COLUMNS = 8  # centre x y z, half size x y z (radius for round ones), cosine and sine of the yaw

# Surfaces: one per primitive, then the six of the room.
FLOOR, CEILING, WALL = PRIMITIVES, PRIMITIVES + 1, PRIMITIVES + 2  # walls in the order +x, -x, +z, -z
SURFACES = PRIMITIVES + 6

# Instance numbers of the mask. 0 is never used by a scene.
INSTANCE_FLOOR, INSTANCE_CEILING, INSTANCE_WALL = 1, 2, 3
INSTANCE_DECAL = 7  # + 3 * wall + slot
INSTANCE_OBJECT = 19  # + object slot

# Object slots: composite furniture owns four boxes each, crates and the partition one each.
COMPOSITES, CRATES, PARTITIONS, DRUMS, PLANTS, LAMPS, BALLS = 3, 3, 1, 2, 1, 1, 2
PARTS = 4
CRATE = COMPOSITES
PARTITION = CRATE + CRATES
DRUM = PARTITION + PARTITIONS
PLANT = DRUM + DRUMS
LAMP = PLANT + PLANTS
BALL = LAMP + LAMPS
OBJECTS = BALL + BALLS
OWNER: tuple[int, ...] = (
    *(i // PARTS for i in range(COMPOSITES * PARTS)),
    *(CRATE + i for i in range(CRATES)),
    PARTITION,
    *(DRUM, DRUM + 1, PLANT, LAMP),  # cylinders
    *(BALL, BALL + 1, PLANT, LAMP),  # spheres
)
KINDS: tuple[str, ...] = (
    "table", "sofa", "cabinet", "bed", "crate", "partition", "drum", "pillar", "plant", "lamp", "ball",
)  # fmt: skip

# Material columns.
COLOUR_A, COLOUR_B, COLOUR_C = 0, 3, 6  # cell colours A and B; C is the grout and the band above the floor
TURN_COS, TURN_SIN, SCALE_U, SCALE_V, PHASE_U, PHASE_V = 9, 10, 11, 12, 13, 14  # scale in cells a metre
ROW_SHIFT, PARITY_U, PARITY_V, PARITY, TONE = 15, 16, 17, 18, 19
GROUT_U, GROUT_V, DOT, BAND, NOISE, NOISE_U, NOISE_V = 20, 21, 22, 23, 24, 25, 26
GLOW, SALT = 27, 28
MATERIAL_COLUMNS = 29

# Decals (doors, windows, pictures): three a wall, ordered along it, never overlapping.
DECALS_PER_WALL = 3
DECALS = 4 * DECALS_PER_WALL
DECAL_BOX = 0  # centre u v, half size u v in metres along the wall and above the floor
DECAL_FRAME, DECAL_FRAME_COLOUR, DECAL_GROUND, DECAL_GLOW = 4, 5, 8, 11
DECAL_SHAPES, SHAPES, SHAPE_COLUMNS = 12, 3, 10  # centre, half size, corner radius, cosine, sine, colour
DECAL_COLUMNS = DECAL_SHAPES + SHAPES * SHAPE_COLUMNS

LIGHTS = 2
LIGHT_COLUMNS = 6  # position, intensity red green blue
