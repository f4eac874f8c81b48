"""Pages for those who train. All of a project, by role."""
