"""One rule a file; registered in dittool/audit/registry.py."""
