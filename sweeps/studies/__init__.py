"""Studies: experiments by trained runs, emulated machines and limits of the kernel, and the claims that they test."""
