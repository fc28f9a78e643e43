"""The data: makes verified, versioned tables that training reads from image folders (Arrow, Ray Data)."""
