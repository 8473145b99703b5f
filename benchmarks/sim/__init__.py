"""The simulator: the production cores on a virtual clock, with modelled links, disks and origin."""
