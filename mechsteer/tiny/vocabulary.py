"""What the embedded model knows: its instruments, styles and modes, and how long its clips are."""

SECONDS = 8.0  # of every clip
# General MIDI programs, 0-based
LEADS = {"piano": 0, "guitar": 25, "violin": 40, "flute": 73, "trumpet": 56, "organ": 16}
STYLES = ("classical", "jazz", "rock", "electronic")
MODES = ("major", "minor")
