// Tells the rules, as the sidecar does, that the services with these addresses are ignored no more, or again.
import { pino } from 'pino'
import { Reclaimer } from '../../../sidecar/interception/reclaimer.ts'

const [label, ...addresses] = process.argv.slice(2)
const services = { loaded: true, byAddress: () => ({ bypass: label === 'back' }) }
const reclaimer = new Reclaimer(addresses, services, pino({ enabled: false }))
reclaimer.update()
setTimeout(() => reclaimer.close(), 200) // time for the name look-up that precedes each datagram
