// Token healing, as in healing.py: the last tokens of a prompt are chosen again, so that it may end inside a token.

const MOST_TOKENS = 8; // at most this many are chosen again

/** Return the ids of a prompt without its last tokens, their text, and the tokens that may follow in each step. */
export class TokenHealing {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    this.bytes = tokenizer.bytes.map((bytes, id) => (tokenizer.added.has(id) ? "" : bytes));
    this.order = null; // ids in the order of their bytes
  }

  heal(prompt) {
    const ids = this.tokenizer.encode(prompt);
    const typed = this._splitLastSpace(prompt, ids);
    let first = Math.max(typed.length - MOST_TOKENS, 0);
    while (first < typed.length && !this._longerTokens(typed.slice(first)).length) first++;
    const isInside = () => first > 0 && first < typed.length && isContinuation(this.bytes[typed[first]]);
    while (isInside()) first--;
    const kept = typed.slice(0, first);
    const end = this._decode(typed).slice(this._decode(kept).length);
    if (!end || !prompt.endsWith(end)) return { ids, end: "", steps: [] }; // a normalizer may have changed the prompt
    const rest = Array.from({ length: typed.length - first }, (_, n) => typed.slice(first + n));
    const steps = rest.map((tail) => ({ token: tail[0], allowed: [tail[0], ...this._longerTokens(tail)] }));
    return { ids: kept, end, steps };
  }

  /** Encode the last space or line break by itself, because that is how GPT-2 splits spaces before a word. */
  _splitLastSpace(prompt, ids) {
    const last = [...prompt].at(-1) ?? "";
    if (!/^[\p{White_Space}\x1c-\x1f]$/u.test(last)) return ids;
    const split = [...this.tokenizer.encode(prompt.slice(0, -last.length)), ...this.tokenizer.encode(last)];
    return this._decode(split) === this._decode(ids) ? split : ids;
  }

  /** Return the ids of longer tokens that begin with these; none if a special token is among these. */
  _longerTokens(ids) {
    const parts = ids.map((id) => this.bytes[id]);
    if (parts.some((part) => !part)) return [];
    const start = parts.join("");
    this.order ??= this._sort();
    const longer = [];
    for (let i = this._find(start); i < this.order.length && this.bytes[this.order[i]].startsWith(start); i++) {
      if (this.bytes[this.order[i]] !== start) longer.push(this.order[i]);
    }
    return longer;
  }

  _sort() {
    const ids = this.bytes.map((_, id) => id);
    const compare = (one, other) => (one < other ? -1 : Number(one > other));
    return ids.sort((one, other) => compare(this.bytes[one], this.bytes[other]) || one - other);
  }

  /** Return the first place in the order whose bytes are not before `start`. */
  _find(start) {
    let [low, high] = [0, this.order.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.bytes[this.order[middle]] < start) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  _decode(ids) {
    return this.tokenizer.decode(ids);
  }
}

function isContinuation(bytes) {
  return bytes >= "\x80" && bytes < "\xc0";
}
