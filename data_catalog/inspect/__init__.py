"""What people look at: summary, contact sheet, verification, lineage."""
