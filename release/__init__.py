"""What a release needs beside its wheels."""
