/** Letters of five rows of pixels, for labels in pictures: no font needs to be installed where they are written. */

/** Rows from top to bottom, `#` is ink; letters have one size. */
const GLYPHS: Readonly<Record<string, string>> = {
  A: '.#. #.# ### #.# #.#',
  B: '##. #.# ##. #.# ##.',
  C: '.## #.. #.. #.. .##',
  D: '##. #.# #.# #.# ##.',
  E: '### #.. ##. #.. ###',
  F: '### #.. ##. #.. #..',
  G: '.### #... #.## #..# .###',
  H: '#.# #.# ### #.# #.#',
  I: '### .#. .#. .#. ###',
  J: '..# ..# ..# #.# .#.',
  K: '#.# #.# ##. #.# #.#',
  L: '#.. #.. #.. #.. ###',
  M: '#...# ##.## #.#.# #...# #...#',
  N: '#..# ##.# #.## #..# #..#',
  O: '.##. #..# #..# #..# .##.',
  P: '##. #.# ##. #.. #..',
  Q: '.##. #..# #..# #.## .###',
  R: '##. #.# ##. #.# #.#',
  S: '.## #.. .#. ..# ##.',
  T: '### .#. .#. .#. .#.',
  U: '#.# #.# #.# #.# ###',
  V: '#.# #.# #.# #.# .#.',
  W: '#...# #...# #.#.# ##.## #...#',
  X: '#.# #.# .#. #.# #.#',
  Y: '#.# #.# .#. .#. .#.',
  Z: '### ..# .#. #.. ###',
  0: '### #.# #.# #.# ###',
  1: '.#. ##. .#. .#. ###',
  2: '##. ..# .#. #.. ###',
  3: '##. ..# .#. ..# ##.',
  4: '#.# #.# ### ..# ..#',
  5: '### #.. ##. ..# ##.',
  6: '.## #.. ### #.# ###',
  7: '### ..# ..# .#. .#.',
  8: '### #.# ### #.# ###',
  9: '### #.# ### ..# ##.',
  ' ': '.. .. .. .. ..',
  '.': '. . . . #',
  ',': '.. .. .. .# #.',
  ':': '. # . # .',
  '-': '... ... ### ... ...',
  _: '... ... ... ... ###',
  '+': '... .#. ### .#. ...',
  '/': '..# ..# .#. #.. #..',
  '(': '.# #. #. #. .#',
  ')': '#. .# .# .# #.',
  '%': '#.# ..# .#. #.. #.#',
  "'": '# # . . .',
  '&': '.#. #.. .## #.# .##',
};
/** What stands for letters that there are not. */
const OTHER = '### #.# #.# #.# ###';

/** Height of every letter. */
export const LETTER_HEIGHT = 5;

/** The letters of a text, accents dropped, as rows of pixels. */
function letters(text: string): string[][] {
  const plain = text.normalize('NFD').replace(/\p{M}/gu, '').toUpperCase();
  return Array.from(plain, (letter) => (GLYPHS[letter] ?? OTHER).split(' '));
}

/** Width of a text in its own pixels. */
export function textWidth(text: string): number {
  return letters(text).reduce((sum, rows) => sum + (rows[0]?.length ?? 0) + 1, -1);
}

/** Calls `ink` for every pixel of a text, counted from its upper left corner. */
export function drawText(text: string, ink: (x: number, y: number) => void): void {
  let left = 0;
  for (const rows of letters(text)) {
    rows.forEach((row, y) => {
      for (let x = 0; x < row.length; x++) if (row[x] === '#') ink(left + x, y);
    });
    left += (rows[0]?.length ?? 0) + 1;
  }
}
