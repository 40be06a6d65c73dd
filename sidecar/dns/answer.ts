import { isIP } from 'node:net'
import type { Answer, Question, RecordType } from 'dns-packet'
import type { Endpoint, ServiceEntry } from '#shared/catalogue.ts'
import { idOf } from '#shared/catalogue.ts'

/** What the resolver needs of the catalogue. */
export interface NameView {
  /** Whether an index was ever there. */
  readonly loaded: boolean
  /** Another number after each change of services. */
  readonly version: number
  byName(namespace: string, name: string): ServiceEntry | undefined
  byAddress(address: string): ServiceEntry | undefined
  /** For headless services. */
  endpoints(id: string, signal: AbortSignal): Promise<readonly Endpoint[]>
  /** A name was resolved: a connection is likely to follow. */
  used(id: string): void
}

export interface NameSettings {
  /** The pod's own namespace, for names of one label. */
  namespace: string
  clusterDomain: string
}

export type ResponseCode = 'NOERROR' | 'FORMERR' | 'SERVFAIL' | 'NXDOMAIN' | 'NOTIMP' | 'REFUSED'

export interface Reply {
  rcode: ResponseCode
  answers: Answer[]
  authorities: Answer[]
  additionals: Answer[]
}

export type Decision =
  | { kind: 'reply'; reply: Reply; service?: string }
  /** Ask the upstream servers; `asked` is the name to ask for when it is not the question's (ExternalName). */
  | { kind: 'forward'; alias?: Answer & { data: string } }
  /** Answered from the endpoints of a headless service, which have to be fetched. */
  | { kind: 'headless'; service: ServiceEntry; hostname?: string; port?: PortName }

interface PortName {
  port: string
  protocol: string
}

/** TTL of our own answers in seconds, as CoreDNS has it by default; negative ones live as long. */
export const ownTtl = 5

type Parsed =
  | { kind: 'service'; namespace: string; name: string; hostname?: string; port?: PortName }
  /** Inside the cluster domain but no name of it. */
  | { kind: 'junk' }
  /** Has names below it, and no records. */
  | { kind: 'empty' }
  | { kind: 'address'; address: string }
  | { kind: 'outside' }

/** Decides a question: pure but for what the view tells. */
export function decide(question: Question, view: NameView, settings: NameSettings): Decision {
  const name = question.name.toLowerCase().replace(/\.$/, '')
  const parsed = parseName(name, settings)
  switch (parsed.kind) {
    case 'outside':
      return { kind: 'forward' }
    case 'empty':
      return { kind: 'reply', reply: none('NOERROR', settings) }
    case 'junk':
      // Known without asking anyone (EdgeMesh #114): the search list makes most of these names.
      return { kind: 'reply', reply: none('NXDOMAIN', settings) }
    case 'address':
      return decidePointer(question, view.byAddress(parsed.address), settings)
    case 'service': {
      const service = view.byName(parsed.namespace, parsed.name)
      if (service !== undefined) return decideService(question, service, parsed, settings)
      if (!isOurs(name, settings)) return { kind: 'forward' }
      // Without an index the name may well exist: an app retries after SERVFAIL, and gives up after NXDOMAIN.
      return { kind: 'reply', reply: none(view.loaded ? 'NXDOMAIN' : 'SERVFAIL', settings) }
    }
  }
}

/** The name as a service: full, or one of the short forms that a search list would have completed. */
function parseName(name: string, { namespace, clusterDomain }: NameSettings): Parsed {
  if (name.endsWith('.arpa')) {
    const address = addressOf(name)
    return address === undefined ? { kind: 'outside' } : { kind: 'address', address }
  }
  if (name === clusterDomain || name === `svc.${clusterDomain}`) return { kind: 'empty' }
  const inside = name.endsWith(`.${clusterDomain}`)
  const labels = (inside ? name.slice(0, -clusterDomain.length - 1) : name).split('.')
  if (labels.at(-1) === 'svc') return parseLabels(labels.slice(0, -1))
  if (inside) return { kind: 'junk' }
  if (labels.length === 1) return { kind: 'service', namespace, name }
  if (labels.length === 2) return parseLabels(labels)
  return { kind: 'outside' }
}

/** `name.ns`, `host.name.ns` or `_port._proto.name.ns`. */
function parseLabels(labels: string[]): Parsed {
  const [namespace = '', name = '', hostname, ...more] = [...labels].reverse()
  if (labels.length < 2) return { kind: 'empty' }
  if (labels.length === 2) return { kind: 'service', namespace, name }
  const [port, ...none] = more
  if (port === undefined) return { kind: 'service', namespace, name, hostname: hostname ?? '' }
  if (none.length > 0 || !port.startsWith('_') || !hostname?.startsWith('_')) return { kind: 'junk' }
  return {
    kind: 'service',
    namespace,
    name,
    port: { port: port.slice(1), protocol: hostname.slice(1).toUpperCase() },
  }
}

/** Whether nobody but us can know the name. */
function isOurs(name: string, { clusterDomain }: NameSettings): boolean {
  return name.endsWith(`.${clusterDomain}`) || name.endsWith('.svc')
}

function decideService(
  question: Question,
  service: ServiceEntry,
  parsed: Extract<Parsed, { kind: 'service' }>,
  settings: NameSettings,
): Decision {
  const { hostname, port } = parsed
  if (service.kind === 'externalName' && hostname === undefined && port === undefined) {
    return {
      kind: 'forward',
      alias: record(question.name, 'CNAME', service.externalName ?? '') as Answer & { data: string },
    }
  }
  if (service.kind === 'headless') {
    const wanted = {
      ...(hostname === undefined ? {} : { hostname }),
      ...(port === undefined ? {} : { port }),
    }
    return { kind: 'headless', service, ...wanted }
  }
  if (hostname !== undefined) return { kind: 'reply', reply: none('NXDOMAIN', settings) }
  const reply =
    port === undefined ? addresses(question, service, settings) : named(question, service, port, settings)
  return { kind: 'reply', reply, service: idOf(service) }
}

/** A or AAAA of the clusterIPs; SRV of all ports. Another family or type is empty, never NXDOMAIN (istio #31250). */
function addresses(question: Question, service: ServiceEntry, settings: NameSettings): Reply {
  if (question.type === 'SRV') return services(question.name, service, service.ports, settings)
  const answers = addressRecords(question.name, question.type, service.clusterIPs)
  return answers.length === 0 ? none('NOERROR', settings) : found(answers)
}

function named(
  question: Question,
  service: ServiceEntry,
  { port, protocol }: PortName,
  settings: NameSettings,
): Reply {
  const matching = service.ports.filter((p) => p.name === port && p.protocol === protocol)
  if (matching.length === 0) return none('NXDOMAIN', settings)
  if (question.type !== 'SRV') return none('NOERROR', settings)
  return services(question.name, service, matching, settings)
}

function services(
  owner: string,
  service: ServiceEntry,
  ports: ServiceEntry['ports'],
  settings: NameSettings,
): Reply {
  if (ports.length === 0) return none('NOERROR', settings)
  const target = fullName(service, settings)
  const answers = ports.map((p) => srv(owner, p.port, target, ports.length))
  return { ...found(answers), additionals: bothFamilies(target, service.clusterIPs) }
}

/** Pure: the records of a headless service from its endpoints. */
export function answerHeadless(
  question: Question,
  decision: Extract<Decision, { kind: 'headless' }>,
  endpoints: readonly Endpoint[],
  settings: NameSettings,
): Reply {
  const { service, hostname, port } = decision
  const ready = endpoints.filter((e) => e.ready && (hostname === undefined || hostLabel(e) === hostname))
  if (hostname !== undefined && ready.length === 0) return none('NXDOMAIN', settings)
  if (port !== undefined || question.type === 'SRV') {
    const ports = service.ports.filter(
      (p) => port === undefined || (p.name === port.port && p.protocol === port.protocol),
    )
    if (ports.length === 0) return none('NXDOMAIN', settings)
    const target = (e: Endpoint) => `${hostLabel(e)}.${fullName(service, settings)}`
    const answers = ready.flatMap((e) =>
      ports.flatMap((p) =>
        e.ports[p.name] === undefined
          ? []
          : [srv(question.name, e.ports[p.name] ?? 0, target(e), ready.length)],
      ),
    )
    if (question.type !== 'SRV' || answers.length === 0) return none('NOERROR', settings)
    return { ...found(answers), additionals: ready.flatMap((e) => bothFamilies(target(e), e.addresses)) }
  }
  const answers = ready.flatMap((e) => addressRecords(question.name, question.type, e.addresses))
  return answers.length === 0 ? none('NOERROR', settings) : found(answers)
}

/** Kubernetes names an endpoint without hostname by its address. */
function hostLabel(endpoint: Endpoint): string {
  return endpoint.hostname ?? (endpoint.addresses[0] ?? '').replaceAll(/[.:]/g, '-')
}

function decidePointer(
  question: Question,
  service: ServiceEntry | undefined,
  settings: NameSettings,
): Decision {
  if (service === undefined) return { kind: 'forward' }
  if (question.type !== 'PTR') return { kind: 'reply', reply: none('NOERROR', settings) }
  return { kind: 'reply', reply: found([record(question.name, 'PTR', fullName(service, settings))]) }
}

/** The address that an in-addr.arpa or ip6.arpa name stands for, canonical. */
function addressOf(name: string): string | undefined {
  if (name.endsWith('.in-addr.arpa')) {
    const address = name.slice(0, -'.in-addr.arpa'.length).split('.').reverse().join('.')
    return isIP(address) === 4 ? address : undefined
  }
  const nibbles = name.slice(0, -'.ip6.arpa'.length).split('.').reverse().join('')
  if (!name.endsWith('.ip6.arpa') || !/^[0-9a-f]{32}$/.test(nibbles)) return undefined
  return new URL(`http://[${nibbles.replaceAll(/(.{4})(?!$)/g, '$1:')}]`).hostname.slice(1, -1)
}

function fullName(service: ServiceEntry, { clusterDomain }: NameSettings): string {
  return `${service.name}.${service.namespace}.svc.${clusterDomain}`
}

function addressRecords(name: string, type: RecordType, addresses: readonly string[]): Answer[] {
  const family = type === 'A' ? 4 : type === 'AAAA' ? 6 : 0
  return addresses.filter((a) => isIP(a) === family).map((data) => record(name, type, data))
}

function bothFamilies(name: string, addresses: readonly string[]): Answer[] {
  return [...addressRecords(name, 'A', addresses), ...addressRecords(name, 'AAAA', addresses)]
}

function srv(name: string, port: number, target: string, count: number): Answer {
  const data = { priority: 0, weight: Math.max(1, Math.floor(100 / count)), port, target }
  return { type: 'SRV', class: 'IN', name, ttl: ownTtl, data }
}

function record(name: string, type: RecordType, data: string): Answer {
  return { type, class: 'IN', name, ttl: ownTtl, data } as Answer
}

export function found(answers: Answer[]): Reply {
  return { rcode: 'NOERROR', answers, authorities: [], additionals: [] }
}

/** An empty reply; its SOA lets the client remember it (RFC 2308). */
export function none(rcode: ResponseCode, { clusterDomain }: NameSettings): Reply {
  const soa: Answer = {
    type: 'SOA',
    class: 'IN',
    name: clusterDomain,
    ttl: ownTtl,
    data: {
      mname: `ns.dns.${clusterDomain}`,
      rname: `hostmaster.${clusterDomain}`,
      serial: 1,
      refresh: 7_200,
      retry: 1_800,
      expire: 86_400,
      minimum: ownTtl,
    },
  }
  return { rcode, answers: [], authorities: rcode === 'SERVFAIL' ? [] : [soa], additionals: [] }
}
