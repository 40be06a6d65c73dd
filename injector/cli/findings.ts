/** One thing that was looked at. */
export interface Finding {
  check: string
  status: 'ok' | 'warning' | 'failure'
  /** What is the case. */
  message: string
  /** What to do about it; empty where there is nothing to do. */
  hint: string
}

export const ok = (check: string, message: string): Finding => ({ check, status: 'ok', message, hint: '' })
export const warning = (check: string, message: string, hint: string): Finding => ({
  check,
  status: 'warning',
  message,
  hint,
})
export const failure = (check: string, message: string, hint: string): Finding => ({
  check,
  status: 'failure',
  message,
  hint,
})

const dayMs = 86_400_000

/** How much longer a certificate is good for. */
export function certificateFinding(check: string, notAfterMs: number, nowMs: number): Finding {
  const days = Math.floor((notAfterMs - nowMs) / dayMs)
  if (days < 0)
    return failure(
      check,
      `expired ${-days} days ago`,
      'look at the log of whoever renews it: the server or the injector',
    )
  if (days < 7)
    return warning(check, `expires in ${days} days`, 'it should have been renewed by now; look at the logs')
  return ok(check, `valid for ${days} more days`)
}

/** Pod security levels that forbid the init container (NET_ADMIN, root). */
export function podSecurityFinding(namespace: string, labels: Record<string, string>): Finding {
  const check = `namespace ${namespace}`
  const level = labels['pod-security.kubernetes.io/enforce']
  if (level === undefined || level === 'privileged')
    return ok(check, 'its pod security lets the init container run')
  return failure(
    check,
    `pod-security.kubernetes.io/enforce is ${level}, which forbids the init container's NET_ADMIN: meshed pods cannot be created`,
    'set it to privileged, or do not mesh this namespace',
  )
}

/** A table for people. Colours only where they are wanted. */
export function table(findings: readonly Finding[], colour: boolean): string {
  const paint = { ok: '32', warning: '33', failure: '31' }
  const mark = { ok: '✔', warning: '!', failure: '✘' }
  const width = Math.max(...findings.map((f) => f.check.length))
  return findings
    .map(({ check, status, message, hint }) => {
      const sign = colour ? `\x1b[${paint[status]}m${mark[status]}\x1b[0m` : mark[status]
      const line = `${sign} ${check.padEnd(width)}  ${message}`
      return hint === '' ? line : `${line}\n  ${' '.repeat(width)}  → ${hint}`
    })
    .join('\n')
}
