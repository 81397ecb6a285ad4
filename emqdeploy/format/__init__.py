"""What lies on a disk: codes and grids, children, frozen networks, checkpoints, bundles, seals; needs numpy only."""
