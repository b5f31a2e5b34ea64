"""Many runs: is one model better than another, and why?"""
