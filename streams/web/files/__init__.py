"""File conversion as the gateway serves it: uploads by presigned URL, jobs, their progress."""
