export function SamplesPage() { return null; }
