"""The data: image folders to verified, versioned tables (Arrow, Ray Data) that training reads."""
