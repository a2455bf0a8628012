// Decodes tokens one by one, in whole characters, as text_stream.py does.

const HELD = 16; // at most this many tokens wait for the last byte of a character

export class TextStream {
  /** `before` are the ids before the first token; their text is not repeated. */
  constructor(tokenizer, before) {
    this.tokenizer = tokenizer;
    this.context = before.slice(-HELD);
    this.held = [];
    this.contextText = tokenizer.decode(this.context);
  }

  /** Return the characters that this token completes. */
  push(token) {
    this.held.push(token);
    const text = this._decode();
    return text.endsWith("\ufffd") && this.held.length < HELD ? "" : this._release(text);
  }

  /** Return the rest of the text, without an incomplete character at its end. */
  flush() {
    return this.held.length ? this._release(this._decode()).replace(/\ufffd+$/, "") : "";
  }

  _decode() {
    return this.tokenizer.decode([...this.context, ...this.held]);
  }

  _release(text) {
    const chunk = text.slice(this.contextText.length);
    this.context = this.held;
    this.held = [];
    this.contextText = this._decode();
    return chunk;
  }
}
