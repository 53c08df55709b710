"""`python -m captune`."""

from captune.cli.main import main

raise SystemExit(main())
