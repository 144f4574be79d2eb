"""Where the log lives. `interface` is the contract; the modules beside it are the engines that keep it."""
