import sys

from services.janitor.main import main

sys.exit(main())
