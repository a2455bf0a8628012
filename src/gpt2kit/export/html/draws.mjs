// Random numbers that depend only on the seed, the sample and the position, the same as those of generate.py.

const MASK = (1n << 64n) - 1n;
// The constants of BLAKE2b, from RFC 7693.
const INITIAL = [
  0x6a09e667f3bcc908n,
  0xbb67ae8584caa73bn,
  0x3c6ef372fe94f82bn,
  0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n,
  0x9b05688c2b3e6c1fn,
  0x1f83d9abfb41bd6bn,
  0x5be0cd19137e2179n,
];
// The order in which each round reads the words of a block, in hexadecimal digits.
const ORDERS = [
  "0123456789abcdef",
  "ea489fd61c02b753",
  "b8c052fdae367194",
  "7931dcbe265a40f8",
  "905724afe1bc683d",
  "2c6a0b834d75fe19",
  "c51fed4a0763928b",
  "db7ec13950f4862a",
  "6fe9b308c2d714a5",
  "a2847615fb9e3cd0",
];
// The words that each of the eight steps of a round mixes: four columns, then four diagonals.
const STEPS = ["048c", "159d", "26ae", "37bf", "05af", "16bc", "278d", "349e"].map(digits);

function digits(text) {
  return [...text].map((digit) => parseInt(digit, 16));
}

/** Return the first 64 bits of the BLAKE2b hash, with a digest of 8 bytes, of at most 128 letters. */
export function hash64(text) {
  const block = new DataView(new ArrayBuffer(128));
  for (let i = 0; i < text.length; i++) block.setUint8(i, text.charCodeAt(i));
  const words = Array.from({ length: 16 }, (_, i) => block.getBigUint64(8 * i, true));
  const state = [...INITIAL];
  state[0] ^= 0x01010008n; // no key, a digest of 8 bytes
  const v = [...state, ...INITIAL];
  v[12] ^= BigInt(text.length);
  v[14] ^= MASK; // the last block
  const rotate = (value, bits) => (value >> bits) | ((value << (64n - bits)) & MASK);
  for (let round = 0; round < 12; round++) {
    const order = digits(ORDERS[round % 10]);
    STEPS.forEach(([a, b, c, d], step) => {
      v[a] = (v[a] + v[b] + words[order[2 * step]]) & MASK;
      v[d] = rotate(v[d] ^ v[a], 32n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = rotate(v[b] ^ v[c], 24n);
      v[a] = (v[a] + v[b] + words[order[2 * step + 1]]) & MASK;
      v[d] = rotate(v[d] ^ v[a], 16n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = rotate(v[b] ^ v[c], 63n);
    });
  }
  return state[0] ^ v[0] ^ v[8];
}

/** Return a number in [0, 1) for these three whole numbers. */
export function uniform(seed, sample, position) {
  return Number(hash64(`${seed} ${sample} ${position}`) >> 11n) / 2 ** 53;
}
