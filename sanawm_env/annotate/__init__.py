"""Real footage as episodes: `sanawm annotate` finds shots, camera poses, intrinsics, scale."""
