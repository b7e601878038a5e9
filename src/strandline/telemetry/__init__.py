"""What strandline tells about itself."""
