"""Labels in, policies out."""
