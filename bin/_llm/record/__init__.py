"""llm-record: show a run record, and run it again."""
