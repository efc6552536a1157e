"""File conversion: jobs, coordinated here and done by converters, whose files go straight to the bucket."""
