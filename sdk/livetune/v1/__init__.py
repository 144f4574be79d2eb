"""The wire contract, generated from proto/livetune/v1 by `make proto`. Do not edit the modules beside this one."""
