"""A stand-in for the installer of Ubuntu's live-server medium.

It installs a small Debian, for tests only. What a builder sees of the genuine
installer from outside is the same: where it looks for its answers, what it
refuses, its socket, its web reports, and what it leaves on the disk.
"""
