// The player of a listening test's page. All sounds of a trial run together from one clock, and all but one are mute:
// switching keeps the place.
let context = null; // one AudioContext for all trials, made at the first click

class Player {
  constructor(onchange) {
    this.onchange = onchange;
    this.playing = false;
    this.loop = true;
    this.selected = 0;
    this.offset = 0;
    this.switches = 0;
    this.sources = [];
    this.buffers = [];
    this.heard = [];
  }

  async load(sounds) {
    const decoder = new OfflineAudioContext(2, 1, 48000);
    const bytes = sounds.map((v) => v.buffer.slice(v.byteOffset, v.byteOffset + v.byteLength));
    this.buffers = await Promise.all(bytes.map((b) => decoder.decodeAudioData(b)));
    this.duration = Math.max(...this.buffers.map((b) => b.duration));
    this.heard = this.buffers.map(() => 0);
    if (this.wanted) this.play();
  }

  get position() {
    if (!this.sources.length) return this.offset;
    const at = context.currentTime - this.origin;
    return this.loop ? at % this.duration : Math.min(at, this.duration);
  }

  async play() {
    this.wanted = !this.buffers.length; // not loaded yet: play as soon as it is
    if (this.playing || this.wanted) return;
    this.playing = true;
    context = context || new AudioContext();
    await context.resume(); // may take a moment, in which someone may have paused
    if (!this.playing || this.sources.length) return;
    if (this.offset >= this.duration - 0.02) this.offset = 0;
    const start = context.currentTime + 0.02;
    this.origin = start - this.offset;
    this.last = start;
    this.sources = this.buffers.map((buffer, k) => {
      const source = new AudioBufferSourceNode(context, { buffer, loop: this.loop, loopEnd: this.duration });
      const gain = new GainNode(context, { gain: k === this.selected ? 1 : 0 });
      source.connect(gain).connect(context.destination);
      source.start(start, this.offset);
      return { source, gain };
    });
    this.timer = setInterval(() => this.tick(), 50);
    this.onchange();
  }

  pause() {
    this.wanted = false;
    if (!this.playing) return;
    this.tick(false);
    this.offset = this.position;
    this.playing = false;
    clearInterval(this.timer);
    for (const { source, gain } of this.sources) {
      gain.gain.setTargetAtTime(0, context.currentTime, 0.005);
      source.stop(context.currentTime + 0.05);
    }
    this.sources = [];
    this.onchange();
  }

  tick(stopAtEnd = true) {
    if (!this.sources.length) return;
    const now = context.currentTime;
    if (now > this.last) {
      this.heard[this.selected] += now - this.last;
      this.last = now;
    }
    if (stopAtEnd && !this.loop && now - this.origin >= this.duration) {
      this.pause();
      this.offset = 0;
    }
    this.onchange();
  }

  select(k, restart = false) {
    if (this.playing) this.tick();
    if (k !== this.selected) this.switches += 1;
    this.selected = k;
    this.sources.forEach(({ gain }, j) => gain.gain.setTargetAtTime(j === k ? 1 : 0, context.currentTime, 0.008));
    if (restart) this.seek(0);
    this.onchange();
  }

  seek(seconds) {
    const going = this.playing;
    this.pause();
    this.offset = seconds;
    return going ? this.play() : this.onchange();
  }

  setLoop(loop) {
    const going = this.playing;
    this.pause();
    this.loop = loop;
    return going ? this.play() : this.onchange();
  }
}
