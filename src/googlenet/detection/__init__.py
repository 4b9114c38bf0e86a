"""Pictures -> boxes: where each object is, of which class. Two ways: regions classified one by one, and a pyramid."""
