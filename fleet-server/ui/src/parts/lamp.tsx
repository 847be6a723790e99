// The andon lamp: a colour, a shape of its own and a word, so that it reads without colour.
import type { Tone, Word } from "../pure/words";

const SHAPES: Record<Tone, preact.JSX.Element> = {
  ok: (
    <>
      <circle cx="7" cy="7" r="6" />
      <path class="cut" d="M4.2 7.2l2 2 3.6-4.2" />
    </>
  ),
  warn: (
    <>
      <path d="M7 1.2L13.2 12.4H.8z" />
      <path class="cut" d="M7 5.2v3.4M7 10.4v.1" />
    </>
  ),
  alarm: (
    <>
      <path d="M4.5 1h5L13 4.5v5L9.5 13h-5L1 9.5v-5z" />
      <path class="cut" d="M7 4v3.6M7 9.9v.1" />
    </>
  ),
  busy: (
    <>
      <circle class="ring" cx="7" cy="7" r="5.2" />
      <circle cx="7" cy="7" r="2.2" />
    </>
  ),
  off: <circle class="ring" cx="7" cy="7" r="5.2" />,
};

export function Glyph({ tone }: { tone: Tone }) {
  return (
    <svg class={`glyph tone-${tone}`} viewBox="0 0 14 14" aria-hidden="true">
      {SHAPES[tone]}
    </svg>
  );
}

export function Lamp({ word }: { word: Word }) {
  return (
    <span class={`lamp tone-${word.tone}`}>
      <Glyph tone={word.tone} />
      <span>{word.text}</span>
    </span>
  );
}

export function Chip({ word }: { word: Word }) {
  return (
    <span class={`chip tone-${word.tone}`}>
      <Glyph tone={word.tone} />
      {word.text}
    </span>
  );
}
