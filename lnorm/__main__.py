from lnorm.cli import main

raise SystemExit(main())
