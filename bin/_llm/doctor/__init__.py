"""llm-doctor: what works on this machine or in this job, and what to do about the rest."""
