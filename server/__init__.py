"""The server: devices, measurements, searches, artifacts and the dashboard behind one HTTP API."""
