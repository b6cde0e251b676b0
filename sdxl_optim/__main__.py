from sdxl_optim.cli import main

raise SystemExit(main())
