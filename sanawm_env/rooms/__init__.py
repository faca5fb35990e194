"""Rooms: procedural rooms with exact pictures, depth, masks and collisions; the ground truth of the embedded world."""

from sanawm_env.rooms.collision import clearance
from sanawm_env.rooms.render import Render, render
from sanawm_env.rooms.scenes import RoomObject, Scenes, sample_scenes
from sanawm_env.rooms.trajectories import Trajectory, sample_trajectories

__all__ = [
    "Render",
    "RoomObject",
    "Scenes",
    "Trajectory",
    "clearance",
    "render",
    "sample_scenes",
    "sample_trajectories",
]
