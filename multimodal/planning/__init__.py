"""Planning a run without its machines: does it fit, how fast is it, what binds?"""
