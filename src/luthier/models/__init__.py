"""Where weights come from, how they load, and how adapters attach."""
