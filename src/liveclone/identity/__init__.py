"""The host's side of identity: judging what agents report, and keeping the evidence."""
