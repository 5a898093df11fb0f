"""The few words that the built-in recogniser knows. A small list: most names are not in it."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TITLES = _words(
    "Mr Mrs Ms Miss Dr Prof Professor President Chancellor Minister Senator Judge Captain Sir "
    "Lady King Queen Prince Princess General Colonel Governor Mayor Pope Justice Secretary Lord"
)
FIRST_NAMES = _words(
    "James John Robert Michael William David Richard Joseph Thomas Tom Charles Daniel Matthew "
    "Mark Paul Peter George Kevin Brian Edward Jason Jack Adam Henry Alan Oliver Noah Samuel "
    "Simon Mary Maria Anna Anne Emma Olivia Sophia Sofia Elena Sarah Laura Julia Lucy Lucia "
    "Grace Jane Alice Emily Linda Susan Karen Ruth Helen Nina Eva Clara Ella Ingrid Priya "
    "Fatima Aisha Mohammed Ahmed Ali Omar Hassan Ibrahim Mehmet Carlos Juan Jose Luis Pedro "
    "Miguel Antonio Marco Luca Giulia Hans Karl Lars Erik Henrik Pierre Jean Marie Claire Ivan "
    "Olga Dmitri Natalia Yuki Hiroshi Kenji Wei Li Mei Chen Nguyen Raj Amit Anil Sanjay Kofi "
    "Kwame Chidi Emmanuel Christine"
)
ORGANIZATION_ENDS = _words(
    "Inc Ltd LLC Corp Corporation Co Company Group Holdings GmbH AG SA PLC plc SE NV University "
    "College Institute School Academy Bank Foundation Association Committee Council Agency "
    "Ministry Department Party Union Museum Hospital Times Post Electronics Airlines Motors "
    "Industries Systems Technologies Partners Consulting Analytics Pharma Foods Energy Solar "
    "Exchange Reserve Cross International Borders Theatre Orchestra Club Society Trust Press"
)
ORGANIZATION_STARTS = _words("University Ministry Department Bank Institute Museum Doctors")
ORGANIZATIONS = _words(
    "Google Microsoft Amazon Facebook IBM Intel Samsung Siemens Toyota Volkswagen Reuters "
    "Greenpeace Oxfam NATO NASA UNESCO UNICEF OPEC FBI CIA BBC CNN Lufthansa Boeing Airbus "
    "Nestlé Sony Bosch"
)
LOCATION_STARTS = _words("Lake Mount Cape Port Fort San Santa St New North South East West River")
LOCATION_ENDS = _words(
    "River Lake Mountains Island Islands Valley Bay Beach Desert Sea Ocean Street"
)
LOCATIONS = _words(
    "Africa Asia Europe America Australia Antarctica China India Japan Russia Germany France "
    "Italy Spain Portugal Poland Ukraine Turkey Greece Sweden Norway Finland Denmark Iceland "
    "Ireland England Scotland Wales Britain Canada Mexico Brazil Argentina Chile Peru Colombia "
    "Cuba Haiti Egypt Kenya Nigeria Ghana Ethiopia Uganda Tanzania Rwanda Sudan Morocco Algeria "
    "Iran Iraq Israel Syria Yemen Pakistan Bangladesh Indonesia Vietnam Thailand Korea Belgium "
    "Austria Switzerland Netherlands Hungary Romania Paris London Berlin Madrid Rome Vienna "
    "Moscow Tokyo Beijing Shanghai Delhi Mumbai Cairo Lagos Nairobi Dublin Oslo Stockholm "
    "Copenhagen Geneva Zurich Munich Hamburg Frankfurt Milan Boston Chicago Houston Seattle "
    "Toronto Sydney California Texas Florida Alps Andes Himalayas Sahara Danube Rhine Nile "
    "Amazon"
)
PLACE_PREPOSITIONS = _words("in near from to across outside between at toward into around off")
NOT_NAMES = _words(
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May "
    "June July August September October November December I The A An In On At After Before No "
    "Nobody My His Her Our Their We You He She It They This That These Those But And Or If When "
    "While Rain Shares Engineers Farmers According Both Some Many"
)
