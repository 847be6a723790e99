// Line icons, 16 by 16, in the text's colour. Decoration only: every one stands beside its word.
import type { ComponentChildren } from "preact";

const icon = (children: ComponentChildren) => () => (
  <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
    {children}
  </svg>
);

export const FleetIcon = icon(<path d="M2.5 3h4v4h-4zM9.5 3h4v4h-4zM2.5 9.5h4v4h-4zM9.5 9.5h4v4h-4z" />);
export const SamplesIcon = icon(<path d="M2.5 3h11v10h-11zM2.5 10.5l3-3 2.5 2.5 2-2 3.5 3.3M10.4 5.8h.01" />);
export const ModelsIcon = icon(<path d="M8 2.2l5.2 2.9v5.8L8 13.8l-5.2-2.9V5.1zM2.8 5.1L8 8l5.2-2.9M8 8v5.8" />);
export const RolloutIcon = icon(<path d="M2.5 4h3v8h-3zM6.8 6h2.7v6H6.8zM10.8 9h2.7v3h-2.7z" />);
export const AuditIcon = icon(<path d="M4 2.5h6l2.5 2.5v8.5H4zM6.3 7h4M6.3 9.5h4M6.3 12h2" />);
export const BackIcon = icon(<path d="M9.5 3.5L5 8l4.5 4.5" />);
export const NextIcon = icon(<path d="M6.5 3.5L11 8l-4.5 4.5" />);
export const CheckIcon = icon(<path d="M3.5 8.5l3 3 6-7" />);
export const CloseIcon = icon(<path d="M4 4l8 8M12 4l-8 8" />);
export const ArrowIcon = icon(<path d="M3 8h9.5M9 4.5L12.5 8 9 11.5" />);
export const PlusIcon = icon(<path d="M8 3v10M3 8h10" />);
export const ChainIcon = icon(<path d="M6.5 9.5l3-3M7 4.5l1.2-1.2a2.6 2.6 0 013.6 3.6L10.5 8.2M9 11.5l-1.2 1.2a2.6 2.6 0 01-3.6-3.6l1.3-1.3" />);

export const Logo = () => (
  <svg class="logo" viewBox="0 0 16 28" aria-hidden="true">
    <rect class="logo-case" x="0.5" y="0.5" width="15" height="27" rx="4.5" />
    <rect class="logo-red" x="4" y="4" width="8" height="5.4" rx="1.6" />
    <rect class="logo-amber" x="4" y="11.3" width="8" height="5.4" rx="1.6" />
    <rect class="logo-green" x="4" y="18.6" width="8" height="5.4" rx="1.6" />
  </svg>
);
