"""The yardsticks: measured side by side in one run, printed as tables or JSON."""
