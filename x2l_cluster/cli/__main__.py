"""``python -m x2l_cluster.cli`` is ``x2l``."""

from x2l_cluster.cli import main

if __name__ == "__main__":
    main()
