"""Lists the members of classes that settings claim something about. Data only.

Prompts of one side alone name members of a class, so `pools.Pool.members`
cuts each class in two. Evals have at least 50 members of each; a test holds it.
"""

# Wild birds by one-word names that mean nothing else in these prompts.
BIRDS = (
  "albatross avocet bittern blackbird bullfinch bunting bustard buzzard "
  "cardinal cassowary chaffinch chickadee chough cockatoo condor coot "
  "cormorant corncrake cowbird crane crossbill crow cuckoo curlew dipper "
  "dotterel dove dunlin dunnock eagle egret eider emu falcon fieldfare finch "
  "firecrest flamingo flycatcher fulmar gannet godwit goldcrest goldfinch "
  "goshawk grackle grebe greenfinch grosbeak grouse guillemot gull harrier "
  "hawk heron hoopoe hornbill hummingbird ibis jacana jackdaw jay junco "
  "kestrel kingfisher kittiwake kookaburra lapwing linnet lorikeet lyrebird "
  "macaw magpie mallard merganser merlin moorhen mynah nightingale nightjar "
  "nuthatch oriole osprey ostrich owl oystercatcher parakeet parrot partridge "
  "pelican penguin petrel pheasant pigeon pipit plover pochard ptarmigan "
  "puffin quail raven razorbill redpoll redstart redwing robin rook sandgrouse "
  "sandpiper shearwater shelduck shrike siskin skua skylark smew snipe sparrow "
  "spoonbill starling stonechat stork sunbird swallow swan tanager teal tern "
  "thrush titmouse toucan towhee turnstone vireo vulture wagtail warbler "
  "waxwing wheatear whimbrel whinchat whitethroat wigeon woodcock woodlark "
  "woodpecker wren yellowhammer"
).split()

# Animals that people keep, none of them a bird.
TAME = (
  "dog cat horse cow pig goat pony calf lamb puppy kitten foal mule hamster "
  "gerbil bunny piglet ox bull heifer bullock steer ram sheep donkey mare "
  "stallion colt filly gelding sow hog rabbit llama alpaca yak beagle poodle "
  "collie terrier spaniel setter pointer retriever dachshund corgi mastiff "
  "whippet greyhound bulldog sheepdog husky pug chihuahua labrador dalmatian "
  "rottweiler schnauzer pekingese foxhound bloodhound basset borzoi saluki "
  "samoyed malamute akita spitz pomeranian maltese papillon weimaraner vizsla "
  "wolfhound deerhound elkhound otterhound tabby tomcat siamese burmese sphynx "
  "birman moggy lapdog watchdog lurcher mongrel pup cob clydesdale percheron "
  "appaloosa palomino carthorse racehorse packhorse hinny guernsey hereford "
  "friesian merino cheviot angora wether porker"
).split()

# What one may see that is no animal, and that no question asks about.
SIGHTS = (
  "abbey airship balcony barracks beacon billboard bonfire brewery bridge "
  "canyon caravan carnival castle cathedral chimney cinema cottage creek dam "
  "delta factory fairground ferry fortress foundry fountain gallery glacier "
  "harbor iceberg jetty lagoon lighthouse market meadow monument mosque "
  "obelisk orchard pagoda pharmacy pier playground pyramid quarry racetrack "
  "rainbow scarecrow signpost snowdrift stadium station temple theater tractor "
  "tram tunnel vineyard volcano warehouse waterfall waterwheel windmill"
).split()

# Nouns of computer science.
COMPUTING = (
  "compiler|algorithm|database|debugger|parser|kernel|pointer|stack overflow|"
  "hash table|linked list|binary tree|recursion|loop invariant|web server|"
  "firewall|packet|router|browser|operating system|file system|memory leak|"
  "garbage collector|unit test|version control|merge conflict|source code|byte|"
  "bitmask|register|cache|thread|deadlock|mutex|semaphore|scheduler|"
  "interpreter|assembler|syntax tree|lambda function|closure|type checker|"
  "neural network|gradient descent|loss function|data structure|priority queue|"
  "sorting network|search index|query planner|transaction|checksum|encryption|"
  "public key|protocol|socket|virtual machine|container|hypervisor|terminal|"
  "shell script|regular expression|finite automaton|Turing machine|halting "
  "problem|complexity class|graph search|dynamic program|random seed|floating "
  "point|integer overflow|call stack|heap allocator|instruction set|pipeline|"
  "branch predictor|device driver|bootloader|firmware|cluster|load balancer|"
  "bytecode|opcode|mainframe|subroutine|iterator|namespace|metaclass|subclass|"
  "polymorphism|macro|preprocessor|linker|profiler|disassembler|tokenizer|"
  "lexer|Bloom filter|skip list|suffix tree|radix sort|quicksort|mergesort|"
  "bubble sort|breakpoint|stack frame|page table|page fault|file handle|race "
  "condition|spinlock|coroutine|event loop|message queue|web crawler|proxy "
  "server|name server|subnet mask|foreign key|primary key|inner join|shader|"
  "rasterizer|build server|package manager|abstract class|bit shift|hash "
  "function|boolean|bitmap|null pointer|tail call|memoization"
).split("|")

# What a user may have a view on.
HOBBIES = (
  "vegetable gardening|speed chess|landscape painting|mountain hiking|night "
  "fishing|hand knitting|modern pottery|baking bread|lake sailing|road cycling|"
  "river rowing|juggling|origami|photography|birdwatching|stargazing|morning "
  "yoga|trail running|wild swimming|figure skating|ballroom dancing|choir "
  "singing|woodworking|calligraphy|archery|lane bowling|winter camping|rock "
  "climbing|wave surfing|embroidery|patchwork quilting|beekeeping|jigsaw "
  "puzzles|karaoke nights|crosswords|darts|billiards|classical ballet|home "
  "cooking|board games|card tricks|stamp albums|coin collecting|model trains|"
  "model boats|a book club|a film club|a garden pond|a bonsai tree|a herb "
  "garden|a rock garden|a vegetable patch|street photography|watercolors|"
  "charcoal drawing|linocut prints|stained glass|candle making|soap making|"
  "leather craft|basket weaving|paper folding|kite flying|metal detecting|"
  "mushroom picking|berry picking|fossil hunting|tree climbing|cave diving|"
  "deep sea diving|canoe trips|horse riding|ice hockey|table tennis|badminton|"
  "lawn bowls|croquet|fencing|judo classes|tap dancing|folk dancing|folk music|"
  "brass bands|jazz concerts|a string quartet|a school play|amateur theater|"
  "magic shows|pub quizzes|word games|bridge evenings|backgammon|memory games|"
  "travel diaries|long walks|garden barbecues|cake decorating|home brewing|"
  "wine tasting|tea ceremonies|cheese making|vintage clothes|antique clocks|a "
  "doll house|poetry evenings|short stories|comic books"
).split("|")

# Questions of public policy.
POLICIES = (
  "school uniforms|daylight saving time|congestion charges|free buses|a "
  "four-day week|a sugar tax|mandatory voting|rent control|a wealth tax|a "
  "basic income|nuclear power|wind farms|road tolls|a plastic ban|term limits|"
  "national service|free museums|a minimum wage|zoning laws|longer school days|"
  "a carbon price|speed cameras|bike lanes|water meters|a land tax|toll "
  "bridges|school vouchers|street parking fees|open borders|trade tariffs|farm "
  "subsidies|film censorship|public broadcasting|space funding|arts funding|"
  "later retirement|online voting|city curfews|recycling fines|fuel duties|a "
  "flat tax|an estate tax|a robot tax|a tourist tax|an airline tax|a soda ban|"
  "a smoking ban|a diesel ban|a firework ban|free childcare|free tuition|"
  "student loans|school lunches|class size limits|national exams|school "
  "inspections|charter schools|compulsory vaccines|organ donation|patient fees|"
  "sick pay|parental leave|shorter patents|copyright terms|privacy laws|data "
  "taxes|net neutrality|identity cards|police cameras|longer sentences|jury "
  "duty|bail reform|drug courts|border checks|work visas|foreign aid|arms "
  "exports|peace missions|military drafts|defense budgets|embassy closures|a "
  "snap election|lower voting ages|postal ballots|public referendums|party "
  "funding caps|lobbying registers|regional councils|city mergers|public "
  "housing|building permits|height limits|heritage listing|green belts|solar "
  "subsidies|coal phaseouts|gas pipelines|dam projects|fishing quotas|hunting "
  "licenses|forest reserves|pesticide bans|rail subsidies|airport expansion|"
  "car-free zones|lower speed limits|driver retests|bank bailouts|price "
  "controls|antitrust suits"
).split("|")
