from captune.cli import main

raise SystemExit(main())
