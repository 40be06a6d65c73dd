import { isIP } from 'node:net'
import {
  leafLifetimeAnnotation,
  leafLifetimeRule,
  offlineGraceAnnotation,
  offlineGraceRule,
  parseLeafLifetime,
  parseOfflineGrace,
} from '#shared/lifetimes.ts'
import { logLevels } from '#shared/log.ts'
import { addedAnnotation, prefix, statusAnnotation } from './mesh-settings.ts'

/** What a workload asks for by annotations; what it does not say has its default. */
export interface WorkloadSettings {
  cpuRequest: string
  memoryRequest: string
  cpuLimit: string | undefined
  memoryLimit: string
  logLevel: string
  drainSeconds: number
  excludedCidrs: string[]
  excludedPorts: number[]
  upstreamDns: string[]
  /** Undefined: the mesh's. */
  serviceCidrs: string[] | undefined
  image: string | undefined
  /** Checked here, and read from the pod by the server, which issues the certificates. */
  leafLifetime: string | undefined
  /** Undefined: none. */
  offlineGrace: string | undefined
}

export const defaults: WorkloadSettings = {
  cpuRequest: '50m',
  memoryRequest: '80Mi',
  cpuLimit: undefined,
  memoryLimit: '256Mi',
  logLevel: 'info',
  drainSeconds: 25,
  excludedCidrs: [],
  excludedPorts: [],
  upstreamDns: [],
  serviceCidrs: undefined,
  image: undefined,
  leafLifetime: undefined,
  offlineGrace: undefined,
}

type Reader<T> = (text: string) => T | { wrong: string }

interface Setting<K extends keyof WorkloadSettings = keyof WorkloadSettings> {
  key: K
  read: Reader<WorkloadSettings[K]>
}

const cpu: Reader<string> = (text) =>
  /^(\d+m|\d+(\.\d{1,3})?)$/.test(text) && !/^0+m?$/.test(text)
    ? text
    : { wrong: 'must be an amount of CPU like 100m or 0.5' }

const memory: Reader<string> = (text) =>
  /^[1-9]\d*(Ki|Mi|Gi|k|M|G)?$/.test(text) ? text : { wrong: 'must be an amount of memory like 128Mi' }

const listOf =
  <T>(item: (text: string) => T | undefined, wrong: string): Reader<T[]> =>
  (text) => {
    const items: T[] = []
    for (const part of text.split(',').map((p) => p.trim())) {
      const read = item(part)
      if (read === undefined) return { wrong }
      items.push(read)
    }
    return items
  }

/** Only whole networks: the kernel would print 10.1.2.3/8 differently from what was written. */
function cidr(text: string): string | undefined {
  const [address = '', bits, ...more] = text.split('/')
  const family = isIP(address)
  if (family === 0 || more.length > 0) return undefined
  if (bits !== undefined && (!/^\d{1,3}$/.test(bits) || Number(bits) > (family === 4 ? 32 : 128)))
    return undefined
  if (family === 6 || bits === undefined) return text
  const value = address.split('.').reduce((sum, part) => sum * 256 + Number(part), 0)
  return value % 2 ** (32 - Number(bits)) === 0 ? text : undefined
}

const port = (text: string) =>
  /^[1-9]\d{0,4}$/.test(text) && Number(text) < 65_536 ? Number(text) : undefined
const cidrs = listOf(cidr, 'must be CIDRs like 10.1.0.0/16, separated by commas')

const setting = <K extends keyof WorkloadSettings>(key: K, read: Reader<WorkloadSettings[K]>) => ({
  key,
  read,
})

/** Every annotation that a workload may carry, without its prefix. */
const settings: Record<string, Setting> = {
  'cpu-request': setting('cpuRequest', cpu),
  'memory-request': setting('memoryRequest', memory),
  'cpu-limit': setting('cpuLimit', cpu),
  'memory-limit': setting('memoryLimit', memory),
  'log-level': setting('logLevel', (text) =>
    logLevels.some((l) => l === text) ? text : { wrong: `must be one of ${logLevels.join(', ')}` },
  ),
  'drain-seconds': setting('drainSeconds', (text) =>
    /^\d{1,4}$/.test(text) && Number(text) <= 3_600 ? Number(text) : { wrong: 'must be 0 to 3600 seconds' },
  ),
  'exclude-cidrs': setting('excludedCidrs', cidrs),
  'exclude-ports': setting('excludedPorts', listOf(port, 'must be port numbers, separated by commas')),
  'upstream-dns': setting(
    'upstreamDns',
    listOf((t) => (isIP(t) === 0 ? undefined : t), 'must be IP addresses, separated by commas'),
  ),
  'service-cidrs': setting('serviceCidrs', cidrs),
  image: setting('image', (text) =>
    /^[\w.:@/-]{1,255}$/.test(text) ? text : { wrong: 'must be the name of an image' },
  ),
  'leaf-lifetime': setting('leafLifetime', (text) =>
    parseLeafLifetime(text) === undefined ? { wrong: leafLifetimeRule } : text,
  ),
  'offline-grace': setting('offlineGrace', (text) =>
    parseOfflineGrace(text) === undefined ? { wrong: offlineGraceRule } : text,
  ),
} as Record<string, Setting>

/** Those that other parts of the mesh use on pods. */
const others = [statusAnnotation, addedAnnotation, `${prefix}balancer`]

/** Those that a namespace may carry for all of its pods. */
const inherited = [leafLifetimeAnnotation, offlineGraceAnnotation]

export function inheritedAnnotations(ofNamespace: Record<string, string> = {}): Record<string, string> {
  return Object.fromEntries(Object.entries(ofNamespace).filter(([name]) => inherited.includes(name)))
}

/** Each annotation that cannot be used gives one warning, and its default is used. */
export function readAnnotations(annotations: Record<string, string> = {}): {
  workload: WorkloadSettings
  warnings: string[]
} {
  const warnings: string[] = []
  const workload: WorkloadSettings = { ...defaults }
  for (const [name, text] of Object.entries(annotations)) {
    if (!name.startsWith(prefix) || others.includes(name)) continue
    const found = Object.hasOwn(settings, name.slice(prefix.length))
      ? settings[name.slice(prefix.length)]
      : undefined
    if (found === undefined) {
      warnings.push(
        `annotation ${name} is not known; did you mean ${prefix}${nearest(name.slice(prefix.length))}?`,
      )
      continue
    }
    const read = found.read(text.trim())
    if (typeof read === 'object' && read !== null && 'wrong' in read) {
      const used = defaults[found.key]
      const instead = used === undefined || String(used) === '' ? 'the default' : String(used)
      warnings.push(`annotation ${name} is "${text.slice(0, 60)}"; it ${read.wrong}. Using ${instead}.`)
    } else Object.assign(workload, { [found.key]: read })
  }
  return { workload, warnings }
}

function nearest(name: string): string {
  const distances = Object.keys(settings).map((known) => ({ known, distance: editDistance(name, known) }))
  return distances.reduce((best, next) => (next.distance < best.distance ? next : best)).known
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (const [i, charA] of [...a].entries()) {
    const next = [i + 1]
    for (const [j, charB] of [...b].entries()) {
      const substitution = (row[j] ?? 0) + (charA === charB ? 0 : 1)
      next.push(Math.min(substitution, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1))
    }
    row = next
  }
  return row[b.length] ?? 0
}
