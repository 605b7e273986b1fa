"""What the recipes share: plain functions, one concern a module. `llm-run` puts it on the path."""
