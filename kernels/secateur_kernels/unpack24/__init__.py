"""Fragment order back to a dense weight, for products that are bound by arithmetic."""
