"""`vecrun demo` and `vecrun demo --reembed`: small real knowledge bases, moved and embedded anew without any network."""
