const minuteMs = 60_000
const dayMs = 86_400_000
const units: Record<string, number> = { s: 1_000, m: minuteMs, h: 60 * minuteMs, d: dayMs }

/** On a pod, or on its namespace for all of its pods; the pod's own comes first. */
export const leafLifetimeAnnotation = 'sidecar.edgemesh.io/leaf-lifetime'
export const offlineGraceAnnotation = 'sidecar.edgemesh.io/offline-grace'

/** What an annotation may ask for, in ms. */
export const leafLifetimeBounds = { min: 10 * minuteMs, max: 90 * dayMs }
export const maxOfflineGraceMs = 90 * dayMs

export const leafLifetimeRule = 'must be a time from 10m to 90d'
export const offlineGraceRule = 'must be a time up to 90d, or 0s for none'

/** `90s`, `15m`, `24h`, `7d` to ms; undefined for anything else. */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d{1,6})([smhd])$/.exec(text)
  return match === null ? undefined : Number(match[1]) * (units[match[2] ?? ''] ?? 0)
}

export function parseLeafLifetime(text: string): number | undefined {
  const ms = parseDuration(text)
  return ms !== undefined && ms >= leafLifetimeBounds.min && ms <= leafLifetimeBounds.max ? ms : undefined
}

export function parseOfflineGrace(text: string): number | undefined {
  const ms = parseDuration(text)
  return ms !== undefined && ms <= maxOfflineGraceMs ? ms : undefined
}

/** While the server is there, certificates are renewed at least once in this time, however long they live; in ms. */
const freshMs = dayMs

/**
 * When to renew a certificate that was given to us `agoMs` ago for `lifetimeMs`: at 50 to 70 % of what is left of it (or
 * of a day), jittered so that pods do not come together. All times are durations by our monotonic clock, since the
 * wall clocks of edge nodes step. Not more often than each second, or each minute for those that live for hours.
 */
export function renewalDelayMs(lifetimeMs: number, agoMs: number, random = Math.random): number {
  const leftMs = Math.min(lifetimeMs - agoMs, freshMs)
  const floorMs = Math.min(minuteMs, Math.max(1_000, lifetimeMs / 20))
  return Math.max(leftMs * (0.5 + 0.2 * random()), floorMs)
}
